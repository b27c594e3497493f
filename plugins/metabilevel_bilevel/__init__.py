"""The problems of the public bilevel benchmark (Dagreou et al. 2022, arXiv:2201.13409), with its definitions."""
