"""Where data sets lie: folders, and URLs behind a bounded cache."""
