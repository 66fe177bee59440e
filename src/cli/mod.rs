//! The command line: serve, demo, adapter, generate, inspect, bench.
