"""Torture `must` for hours: kill it, fill its disk, damage its files, pester its page; see that nothing is lost."""
