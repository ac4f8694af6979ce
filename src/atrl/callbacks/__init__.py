"""Lightning callbacks. Each binds a component to the module and owns its life, or records what a step left."""
