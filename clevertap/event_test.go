package clevertap

import (
	"strings"
	"testing"
)

func TestReservedEvent(t *testing.T) {
	for folded, name := range reserved {
		if strings.ToLower(strings.ReplaceAll(name, " ", "")) != folded || len(folded) > maxReserved {
			t.Errorf("%q does not fold to %q", name, folded)
		}
		for _, spelled := range []string{name, folded, strings.ToUpper(name), " " + name + "\t"} {
			if !ReservedEvent(spelled) {
				t.Errorf("%q passes", spelled)
			}
		}
	}
	for _, name := range []string{"", " ", "Notification", "NotificationSentX", "Notification-Sent", "Stayed2", "Ştayed", "My First Campaign", strings.Repeat("a", 500)} {
		if ReservedEvent(name) {
			t.Errorf("%q is refused", name)
		}
	}
	if n := testing.AllocsPerRun(100, func() { ReservedEvent("Notification Delivered"); ReservedEvent("My First Campaign") }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestURLForRegion(t *testing.T) {
	for region, want := range map[string]string{
		"eu1": "https://api.clevertap.com", "IN1": "https://in1.api.clevertap.com", "sg1": "https://sg1.api.clevertap.com",
		"us1": "https://us1.api.clevertap.com", "aps3": "https://aps3.api.clevertap.com", "mec1": "https://mec1.api.clevertap.com",
	} {
		if got, err := URLForRegion(region); err != nil || got != want {
			t.Errorf("%s: got %q, %v, want %q", region, got, err, want)
		}
	}
	if _, err := URLForRegion("sk1"); err == nil || !strings.Contains(err.Error(), `"sk1"`) {
		t.Errorf("sk1: got %v", err)
	}
}

func TestOnlyAServerErrorPasses(t *testing.T) {
	for c := Code(500); c < 600; c++ {
		if c.Passing() != (c == CodeServerError) {
			t.Errorf("%d: %v", c, c.Passing())
		}
	}
}

func BenchmarkReservedEvent(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		ReservedEvent("My First Campaign")
	}
}
