"""Who may call what: TLS, callers with their tokens or certificates, roles, quotas, and the audit log.

A call passes the transport (``listen``, ``certificates``) and then the ``door``, which asks ``callers`` who calls,
``roles`` whether they may, ``quotas`` whether it is not too much, and writes admins' actions to ``audit``. ``reload``
reads changed files again.
"""
