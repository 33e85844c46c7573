package spooldir

// Die leaves a draft as its submitter leaves it that dies, and reports whether the
// cleaner can see that.
func (d *Draft) Die() (seen bool, err error) { return d.locked, d.f.Close() }
