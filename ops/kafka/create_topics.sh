#!/bin/sh
# Create the daemon's topics: create_topics.sh LIBS BOOTSTRAP_SERVERS [REPLICATION_FACTOR [PARTITIONS [SUFFIX]]]
#
# LIBS is the folder of Kafka's jars (README.md). PARTITIONS is for visit-ready: each partition is a lane with one
# exposure in flight, so give it at least twice the number of workers. SUFFIX ends every name: a second set, for a night
# that is taken again. What exists already is left as it is.
set -eu
libs=$1
brokers=$2
replicas=${3:-1}
lanes=${4:-16}
suffix=${5:-}

if [ "$replicas" -gt 1 ]; then in_sync=2; else in_sync=1; fi

days() { echo $(($1 * 24 * 3600 * 1000)); }

create() {
    name=$1$suffix
    partitions=$2
    shift 2
    options=""
    for setting in "min.insync.replicas=$in_sync" "max.message.bytes=10485760" "$@"; do
        options="$options --config $setting"
    done
    # shellcheck disable=SC2086  # the options are words
    java -Xmx256m -cp "$libs/*" org.apache.kafka.tools.TopicCommand --bootstrap-server "$brokers" --create \
        --if-not-exists --topic "$name" --partitions "$partitions" --replication-factor "$replicas" $options
}

# Events in. Kept as long as the group's offsets are, so that a night can be read again.
create visit-ready "$lanes" "retention.ms=$(days 14)"
create next-visit 1 "retention.ms=$(days 1)"
# Alerts out. Rubin has 45 partitions and keeps a week; the size bound of each partition guards the disk.
create alerts 16 "retention.ms=$(days 7)" "retention.bytes=20000000000" "compression.type=producer"
create alerts-replay 16 "retention.ms=$(days 7)" "retention.bytes=20000000000" "compression.type=producer"
# One small record an exposure: the denominator of every report, kept for a season.
create visit-summary 4 "retention.ms=$(days 180)"
# Until somebody has looked at them.
create visit-ready-dead-letters 1 "retention.ms=$(days 90)"
