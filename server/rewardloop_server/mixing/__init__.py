"""Several reward models in one process: who scores a request that names a model or a mixture."""
