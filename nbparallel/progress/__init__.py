"""Progress views: they are given snapshots and draw them; nothing here touches a store or a job."""
