#!/bin/sh
# sh deploy/secure/keys.sh DIR: an authority, certificates and passwords for deploy/secure/compose.yml, a folder for each service that is to see
# them. Needs openssl. It never overwrites: to change all of them, name a new DIR in LIVESHELF_SECRETS and run `docker compose up -d`.
#
# DIR is closed to everybody else on this machine (0700). What lies in it is readable, since each container reads its own folder as a user
# of its own. ca-key.pem makes new certificates: keep it elsewhere.
set -eu
if [ -e "$1" ]; then
  echo "$1 exists; nothing was made. Name a new directory, or remove it" >&2
  exit 1
fi
umask 077
mkdir -p "$1"
cd "$1"
umask 022
DAYS=825

openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days $DAYS -subj /CN=liveshelf-ca \
  -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign -keyout ca-key.pem -out ca.pem 2> openssl.log
chmod 600 ca-key.pem

password() { openssl rand -hex 24; }  # no character that a connection string or TOML would read as its own

certificate() { # folder, name in the certificate; it is also the host that clients know it under
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$2" -keyout "$1/key.pem" -out request.pem 2>> openssl.log
  chmod 644 "$1/key.pem"
  printf 'subjectAltName=DNS:%s,DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n' "$2" > extensions
  openssl x509 -req -in request.pem -CA ca.pem -CAkey ca-key.pem -CAcreateserial -days $DAYS -extfile extensions -out "$1/cert.pem" 2>> openssl.log
}

for folder in kafka store access collector agents joiner scoring trainer model-server store-exporter shop; do
  mkdir $folder
  cp ca.pem $folder/
done

# Kafka's own form: key and certificate in one file.
certificate kafka kafka
cat kafka/key.pem kafka/cert.pem > kafka/keystore.pem
rm kafka/key.pem kafka/cert.pem
certificate store store
certificate scoring scoring
certificate trainer trainer
certificate model-server model-server
certificate shop shop      # for whoever asks for shelves: a backend, simulated shoppers
certificate access admin   # Kafka's super user

# TensorFlow Serving's own form: the texts in one file.
text() { awk '{ printf "%s\\n", $0 }' "$1"; }
cat > model-server/ssl.config <<END
server_key: "$(text model-server/key.pem)"
server_cert: "$(text model-server/cert.pem)"
custom_ca: "$(text model-server/ca.pem)"
client_verify: true
END
rm model-server/key.pem model-server/cert.pem model-server/ca.pem

cat > access/settings.toml <<END
kafka_security_protocol = "SSL"
kafka_ssl_ca = "/run/secrets/ca.pem"
kafka_ssl_cert = "/run/secrets/cert.pem"
kafka_ssl_key = "/run/secrets/key.pem"
END
for role in collector agents joiner scoring trainer; do
  secret=$(password)
  echo "$role = \"$secret\"" >> access/users.toml
  cat > $role/settings.toml <<END
kafka_security_protocol = "SASL_SSL"
kafka_sasl_mechanism = "SCRAM-SHA-512"
kafka_sasl_username = "$role"
kafka_sasl_password = "$secret"
kafka_ssl_ca = "/run/secrets/ca.pem"
END
done
cat >> scoring/settings.toml <<END
scoring_tls_cert = "/run/secrets/cert.pem"
scoring_tls_key = "/run/secrets/key.pem"
scoring_tls_client_ca = "/run/secrets/ca.pem"
END
for role in scoring trainer; do
  cat >> $role/settings.toml <<END
model_server_tls_ca = "/run/secrets/ca.pem"
model_server_tls_cert = "/run/secrets/cert.pem"
model_server_tls_key = "/run/secrets/key.pem"
END
done

cat > shop/settings.toml <<END
scoring_tls_ca = "/run/secrets/ca.pem"
scoring_tls_client_cert = "/run/secrets/cert.pem"
scoring_tls_client_key = "/run/secrets/key.pem"
END

# The agents write rows, scoring reads them, the exporter counts; nobody else gets in, and nobody may empty the store or change its settings.
store_user() { # name, rules
  secret=$(password)
  printf 'user %s on #%s %s\n' "$1" "$(printf %s "$secret" | openssl dgst -sha256 -r | cut -d ' ' -f 1)" "$2" >> store/users.acl
}
echo "user default off" > store/users.acl
store_user agents "~* resetchannels -@all +@connection +@read +@write +@scripting -@admin -@dangerous +info"
echo "store = \"store:6379,username=agents,password=$secret,ssl=true,ssl_ca_certs=/run/secrets/ca.pem\"" >> agents/settings.toml
store_user scoring "%R~* resetchannels -@all +@connection +@read -@admin -@dangerous +info"
echo "store = \"store:6379,username=scoring,password=$secret,ssl=true,ssl_ca_certs=/run/secrets/ca.pem\"" >> scoring/settings.toml
store_user exporter "resetkeys resetchannels -@all +ping +info +config|get +client|list +slowlog|get +slowlog|len +latency|latest"
printf '{"rediss://exporter@store:6379": "%s"}\n' "$secret" > store-exporter/passwords.json

rm -f request.pem extensions openssl.log ca.srl
