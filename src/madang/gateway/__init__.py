"""The data plane: tenant API and peer port of one site. Owns requests in flight; choosing is policy's."""
