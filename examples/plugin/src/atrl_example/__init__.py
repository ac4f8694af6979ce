"""A credit scheme, a reward and a benchmark for atrl; its configs are in `conf/`."""
