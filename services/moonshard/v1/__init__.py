"""Generated from protos/moonshard/v1; only rpc and the servicers import it."""
