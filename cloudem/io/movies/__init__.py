"""Movies of detectors: MRC, TIFF and EER, read by ranges of bytes, with gain references, defects and their tables."""
