package passwd

import (
	"context"
	"sync"
	"time"
)

const (
	recentFor  = time.Second
	recentMost = 1024
)

// Recent is a Source that answers for a second what another one has answered:
// the steps of a message ask again and again for one user. What was not found,
// or could not be told, is asked for every time. It may be used by several
// goroutines.
type Recent struct {
	source Source
	now    func() time.Time

	mu    sync.Mutex
	users map[string]recentUser
}

type recentUser struct {
	user  User
	asked time.Time
}

// NewRecent makes a Recent of a source and a clock.
func NewRecent(source Source, now func() time.Time) *Recent {
	return &Recent{source: source, now: now, users: make(map[string]recentUser)}
}

// Lookup implements Source.
func (r *Recent) Lookup(ctx context.Context, name string) (User, error) {
	asked := r.now()
	r.mu.Lock()
	known, ok := r.users[name]
	r.mu.Unlock()
	if age := asked.Sub(known.asked); ok && age >= 0 && age < recentFor {
		return known.user, nil
	}
	u, err := r.source.Lookup(ctx, name)
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		delete(r.users, name)
		return u, err
	}
	if len(r.users) >= recentMost {
		clear(r.users)
	}
	r.users[name] = recentUser{u, asked}
	return u, nil
}

// LookupID implements Source. It asks every time.
func (r *Recent) LookupID(ctx context.Context, uid int) (User, error) {
	return r.source.LookupID(ctx, uid)
}
