#!/bin/bash
# Makes a machine image out of the machine that it runs on, as root: install.sh FOLDER
#
# FOLDER holds the wheel of cloudem, constraints and files/. build.py runs this on a machine of its own; it works as
# well under Packer or EC2 Image Builder, on Amazon Linux 2023.
set -euo pipefail

cd "$1"
wheel=$(echo cloudem-*.whl)
extras=${CLOUDEM_EXTRAS:-aws,fsspec,movies}
versions=constraints.txt
case ",$extras," in *,gpu,*) versions=constraints-gpu.txt ;; esac

dnf -y --setopt=install_weak_deps=False install chrony mdadm python3.11 xfsprogs
useradd --system --uid 10001 --user-group --home-dir /var/cache/cloudem --shell /usr/sbin/nologin cloudem

python3.11 -m venv /opt/cloudem
/opt/cloudem/bin/pip install --no-cache-dir --disable-pip-version-check --only-binary :all: \
    --constraint "$versions" "./${wheel}[${extras}]"
/opt/cloudem/bin/cloudem version
/opt/cloudem/bin/pip freeze >/opt/cloudem/versions.txt

install -m 0755 files/cloudem-deadline files/cloudem-disks /usr/local/sbin/
install -m 0644 files/*.service files/*.timer /etc/systemd/system/
systemctl enable chronyd.service cloudem-deadline.timer cloudem-disks.service cloudem-node.service

# Nobody logs in: no SSH daemon, no session manager, no keys. What a node says it writes into the run's folder.
systemctl disable amazon-ssm-agent.service 2>/dev/null || true
dnf -y remove openssh-server ec2-instance-connect 2>/dev/null || dnf -y remove openssh-server
rm -rf /etc/ssh/ssh_host_* /root/.ssh /home/*/.ssh

# A new machine is to begin anew: own identity, own user-data, empty logs.
dnf clean all
cloud-init clean --logs
truncate -s 0 /etc/machine-id
rm -rf /var/log/journal/* /tmp/* /var/tmp/*
