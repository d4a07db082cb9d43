"""``spade launch mpi``: ranks started by mpiexec of Open MPI, MPICH or Intel MPI."""
