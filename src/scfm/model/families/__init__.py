"""The families of models that scfm comes with: every public module here is one, and is found by being here."""
