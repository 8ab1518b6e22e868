"""The `furiosa` chip driver: FuriosaAI RNGD and Warboy."""
