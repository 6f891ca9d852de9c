"""Taobao display ads (Ali): the released impressions of eight days with 22 days of shopping behaviour."""
