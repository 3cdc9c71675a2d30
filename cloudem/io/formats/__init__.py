"""Files of other programs: STAR, RELION, cryoSPARC, MRC, atomic models, and the stacks that tables name."""
