"""Which releases of FlashInfer read which version: the two cannot read each other (formats: C2, C3)."""

V1 = "FlashInfer 0.6.10..0.6.15, 0.6.16.post3, 0.6.16.post4, 0.6.17"
V2 = "FlashInfer 0.6.16, 0.6.16.post1, 0.6.16.post2, 0.6.18rc, 0.7"
