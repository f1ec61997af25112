package sender

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/birdtap/birdtap/sendbird"
)

const (
	// templateWait is how long a call waits for its template's list of variables. One
	// that cannot be read blocks nobody.
	templateWait = 2 * time.Second
	// templateKnown is for how long a template, or that there is none to be had, is taken
	// for known; templateFresh, before users are refused for it: somebody may just have
	// added a variable.
	templateKnown = 5 * time.Minute
	templateFresh = 10 * time.Second
)

// templates remembers what Sendbird says of templates.
type templates struct {
	client Client
	asking singleflight.Group // one question about a template at a time

	mu    sync.Mutex
	known map[string]knownTemplate
}

type knownTemplate struct {
	template *sendbird.Template // nil: cannot be read
	asked    time.Time
}

// get returns a template as it was at most maxAge ago, nil if it cannot be read.
func (t *templates) get(ctx context.Context, key string, maxAge time.Duration) *sendbird.Template {
	t.mu.Lock()
	known, ok := t.known[key]
	t.mu.Unlock()
	if ok && time.Since(known.asked) < maxAge {
		return known.template
	}
	answer, _, _ := t.asking.Do(key, func() (any, error) { return t.ask(ctx, key), nil })
	return answer.(*sendbird.Template) // it is what ask returns
}

func (t *templates) ask(ctx context.Context, key string) *sendbird.Template {
	asking, cancel := context.WithTimeout(ctx, templateWait)
	defer cancel()
	known := knownTemplate{asked: time.Now()}
	if template, err := t.client.Template(asking, key); err == nil && template.Understood() {
		known.template = &template
	}
	if ctx.Err() != nil {
		return known.template // stopped: that says nothing about the template
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.known == nil || len(t.known) >= maxTemplates {
		t.known = map[string]knownTemplate{}
	}
	t.known[key] = known
	return known.template
}

// maxTemplates is more than the 100 that an application has.
const maxTemplates = 1000
