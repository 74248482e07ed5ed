"""Calls of the LabellingService: `client.labelling` of both clients, and the service in memory of the fake."""
