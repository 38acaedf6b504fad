"""The native kernel: C++ on a CPU, called through one plain C interface. Knows addresses, and no framework."""
