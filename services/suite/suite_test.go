package suite

import "testing"

func TestEveryPublicServiceHasOneOwner(t *testing.T) {
	owners := map[string]string{}
	for _, d := range Daemons {
		if got, ok := ByName(d.Name); !ok || got.Name != d.Name {
			t.Errorf("ByName(%q) = %+v, %t", d.Name, got, ok)
		}
		for _, s := range d.Public {
			if other := owners[s]; other != "" {
				t.Errorf("%s is answered by %s and %s", s, other, d.Name)
			}
			owners[s] = d.Name
			if got, ok := Owner(s); !ok || got.Name != d.Name {
				t.Errorf("Owner(%q) = %q, %t, want %q", s, got.Name, ok, d.Name)
			}
		}
		for _, s := range d.Private {
			if _, ok := Owner(s); ok {
				t.Errorf("%s of %s is private and has a public owner", s, d.Name)
			}
		}
	}
	if d, ok := Owner("made.up.Service"); ok {
		t.Errorf("a made up service is answered by %s", d.Name)
	}
}
