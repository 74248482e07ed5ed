"""The OperationsService, by which operators see the loop and decide about dead letters and people."""
