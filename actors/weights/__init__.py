"""Find, check and download the files of models; refuse unsafe models. No Ray."""
