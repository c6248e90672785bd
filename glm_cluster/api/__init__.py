"""The wire: HTTP and gRPC over one service. No Ray, no torch."""
