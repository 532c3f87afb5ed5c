"""One complete config per experiment; installed as `urnet_jax.configs`."""
