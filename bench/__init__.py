"""The benches of the kernels, as `pykernels.bench`; in a checkout also as `bench`."""
