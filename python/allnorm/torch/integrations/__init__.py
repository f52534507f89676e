"""What other packages need to know of these layers: `lightning` has a callback, `mmengine` names for configurations. Each
imports its package, so none of them is imported here. Models of timm need nothing but convert()."""
