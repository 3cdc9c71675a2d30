"""CTF refinement: one joint fit of defocus, poses and aberrations."""
