"""Files and stores: Zarr, MRC, STAR, cryoSPARC."""
