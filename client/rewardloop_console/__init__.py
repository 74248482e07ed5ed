"""The web console, which the HTTP door serves under ``/console``: pages for people, made on the server."""
