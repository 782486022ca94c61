"""The HDF5 store: header, reader, writer, manifest, checks, scaling."""
