package spooldir

// FileSystem is what is known about the file system under a spool.
type FileSystem struct {
	Type string // "ext4", "xfs", "btrfs", ..., "" if unknown

	// Ordered says that the file system keeps all changes of names in one
	// order (ext4, xfs): a sync of one directory makes every earlier step
	// durable. Elsewhere each file has to be synced.
	Ordered bool

	// Warnings say what makes the promises of this package weaker than they
	// should be, each with its remedy.
	Warnings []string
}
