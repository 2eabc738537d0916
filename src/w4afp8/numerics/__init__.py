"""Pure tensor arithmetic: element types, groups, error measures.  Imports torch and `errors`, nothing else of ours."""
