"""Load on engines and servers, and what they make of it: latency, throughput, and behaviour under arrivals."""
