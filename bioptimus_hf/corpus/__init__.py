"""Read and write documents: files, formats, sentences, decontamination."""
