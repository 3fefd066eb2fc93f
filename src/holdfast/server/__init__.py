"""The server: every slice over HTTP, on one ledger. Needs the extra `server`."""
