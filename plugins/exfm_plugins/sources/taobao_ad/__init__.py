"""Registers the data source `taobao_ad`: Ali's display ads of 8 days with 22 days of shopping behaviour."""
