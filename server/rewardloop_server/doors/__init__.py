"""Who may come in and do what: TLS, callers with their tokens or certificates, roles, quotas, and the audit log.

A call passes ``listen`` and ``certificates`` (the transport), then ``door``: ``callers`` (who is it), ``roles`` (may
they), ``quotas`` (not too much), ``audit`` (what an admin did). The files that these read are read again by ``reload``.
"""
