"""Single-loop and penalty methods: one file each, an `AbstractSingleLoop` and the factory that names its options."""
