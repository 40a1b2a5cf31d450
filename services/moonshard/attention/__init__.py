"""The attention worker: scheduler, latent KV cache, sampler, and the process around them."""
