"""HTTP service: requests that arrive together are batched; `mmprefix serve` starts it."""
