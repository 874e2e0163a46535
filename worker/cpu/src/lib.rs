//! The CPU backend: a scalar reference of each op and vectorised kernels chosen at run time.
