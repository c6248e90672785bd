"""Native code for ranks on CPUs: C++ sources, compiled on the host that runs them, called through ctypes."""
