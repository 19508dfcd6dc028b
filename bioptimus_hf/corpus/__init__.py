"""Read and write documents: corpora, file formats, sentences, decontamination."""
