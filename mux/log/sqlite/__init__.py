"""The default store: one sqlite file. `mux.log.sqlite.store` says what it promises."""
