# shellcheck shell=bash
# pki.sh - certificates for tests, in $T/pki: an authority "ca", one that nobody trusts "other", a server's, and clients' by
#	pki_make			the authorities and server.pem, server.key (localhost, 127.0.0.1, ::1)
#	pki_cert FILE CN USE [CA]	FILE.pem and FILE.key; USE: serverAuth, clientAuth
pki_make() {
	local a
	mkdir -p "$T/pki"
	for a in ca other; do
		openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$T/pki/$a.key" -out "$T/pki/$a.pem" \
			-subj "/CN=$a" -days 2 >>"$T/pki/log" 2>&1 || fail "no authority $a: $(tail -n 3 "$T/pki/log")"
	done
	pki_cert server server serverAuth
}
pki_cert() {
	local f=$T/pki/$1 ca=$T/pki/${4:-ca}
	printf 'subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1\nextendedKeyUsage=%s\n' "$3" >"$f.ext"
	{
		openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$f.key" -out "$f.csr" -subj "/CN=$2" &&
			openssl x509 -req -in "$f.csr" -CA "$ca.pem" -CAkey "$ca.key" -CAcreateserial -days 1 -extfile "$f.ext" -out "$f.pem"
	} >>"$T/pki/log" 2>&1 || fail "no certificate $1: $(tail -n 3 "$T/pki/log")"
	chmod 600 "$f.key"
}
