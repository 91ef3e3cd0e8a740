"""Makes weights smaller and says what that cost: quantizes, prunes, decides by layer; serves nothing."""
