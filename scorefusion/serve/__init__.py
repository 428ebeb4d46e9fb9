"""A small server: scans in over HTTP, their translations out; for one machine or a trusted network."""
